"""Names of classes in configurations; imports nothing."""


def judge_class_name(name: str) -> None:
    """ValueError: it does not name a class."""
    module, colon, attribute = name.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
        raise ValueError(f'{name!r} does not name a class as "package.module:Class"')

from hvcore.disk.image import Judged
from hvcore.disk.vhd.create import Parent


def relink_vhd(child: Judged, parent: Parent) -> None:
    raise NotImplementedError

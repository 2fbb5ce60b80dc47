"""Synthetic storage over VMBus: vstor packets, VSP and VSC."""

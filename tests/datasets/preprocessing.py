"""Tiny preprocessings that worker processes can unpickle."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from multiprocessing import resource_sharer

import numpy as np
import torch
from PIL import Image


def small(picture: Image.Image) -> torch.Tensor:
    pixels = np.asarray(picture.resize((4, 4)), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


def small_unless_blue(picture: Image.Image) -> torch.Tensor:
    if picture.getpixel((0, 0)) == (0, 0, 255):
        raise ZeroDivisionError("blue has no warmth")
    return small(picture)


def kills_its_process(picture: Image.Image) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return small(picture)


def killed_as_it_asks_whether_to_end(picture: Image.Image) -> torch.Tensor:
    """Die with whatever lock there is in the event by which torch's loop hears of its end."""
    frame = sys._getframe()
    while "done_event" not in frame.f_locals:
        frame = frame.f_back
    getattr(frame.f_locals["done_event"], "_cond", threading.Lock()).acquire()
    return kills_its_process(picture)


def own_size(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture, dtype=np.float32)).permute(2, 0, 1)


def grey(picture: Image.Image) -> torch.Tensor:
    return small(picture)[:1]


def whole_numbers(picture: Image.Image) -> torch.Tensor:
    return (small(picture) * 255).to(torch.uint8)


def not_a_tensor(picture: Image.Image) -> Image.Image:
    return picture


def small_until_it_dies_slowly(picture: Image.Image) -> torch.Tensor:
    """At a black picture: take back what is on its way to the main process, and die a second later.

    A process that is killed closes its sockets, too, some time before it counts as dead.
    """
    if picture.getpixel((0, 0)) == (0, 0, 0):
        time.sleep(0.2)
        resource_sharer.stop()
        time.sleep(1.5)
        return kills_its_process(picture)
    return small(picture)

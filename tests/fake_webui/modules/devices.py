import contextlib

import torch


class NansException(Exception):
    pass


cpu = device = torch.device("cpu")
dtype = dtype_vae = torch.float32
unet_needs_upcast = False


def autocast(disable=False):
    return contextlib.nullcontext()


def without_autocast(disable=False):
    return contextlib.nullcontext()


def torch_gc():
    pass

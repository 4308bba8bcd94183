import torch
from modules import shared


class ImageRNG:
    def __init__(self, shape, seeds, subseeds=None, subseed_strength=0.0, seed_resize_from_h=0, seed_resize_from_w=0):
        self.shape = tuple(shape)
        self.seeds, self.is_first, self.delta = seeds, True, 0
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def next(self):
        if not self.is_first and (delta := shared.opts.eta_noise_seed_delta) and not self.delta:
            self.delta = delta
            self.generators = [torch.Generator().manual_seed(int(seed) + delta) for seed in self.seeds]
        self.is_first = False
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])

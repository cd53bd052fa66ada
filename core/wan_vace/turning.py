"""A video that begins as another one: while it is sampled, its first latent frames turn from that into its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .denoise import Steer


@dataclass(frozen=True, eq=False)
class Before:
    """What a video begins as.

    The video's very first latent frame holds one frame where others hold four, so it has no counterpart
    here and stays as the model makes it.

    Attributes:
        latents: [1, z, m, h, w], for the second latent frame and those behind it.
        ramp: over how many of them, the last ones, it turns into the video's own: the n-th of r keeps
            n / (r + 1) of its own. Those in front are taken as they are.
    """

    latents: torch.Tensor
    ramp: int

    def weights(self) -> torch.Tensor:
        """Return how much each latent frame is drawn to `latents`, 0..1, [1, 1, m, 1, 1]."""
        import torch

        falling = torch.arange(self.ramp, 0, -1) / (self.ramp + 1)
        whole = torch.ones(self.latents.shape[2] - self.ramp)
        return torch.cat([whole, falling]).view(1, 1, -1, 1, 1)

    def steer(self, references: int) -> Steer:
        """Return what changes the flow of a step so that the video begins so.

        With latents x = (1 - s) · clean + s · noise the flow v predicts clean = x - s · v. Where that is drawn
        to `latents` by a weight w, the flow becomes (1 - w) · v + w · (x - latents) / s. The scheduler then keeps a
        history of predictions that agree, which it would not if its latents were changed between its steps.

        Args:
            references: latent frames of references in front of the video.
        """
        import torch

        first = references + 1
        behind = first + self.latents.shape[2]

        def steered(flow: torch.Tensor, latents: torch.Tensor, level: float) -> torch.Tensor:
            wanted = (latents[:, :, first:behind] - self.latents.to(latents)) / level
            drawn = torch.lerp(flow[:, :, first:behind].to(wanted), wanted, self.weights().to(wanted))
            return torch.cat([flow[:, :, :first], drawn.to(flow), flow[:, :, behind:]], dim=2)

        return steered

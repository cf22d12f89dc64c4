"""DINOv2 features, computed by timm, for FD-DINOv2."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from diffem.metric.features import Extractor, check_rgb, eight_bit_rgb
from diffem.metric.weights import fill, read_weights, weights_file
from diffem.runtime.errors import UserError

MODEL = "vit_large_patch14_dinov2.lvd142m"
SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class DINOv2(Extractor):
    """The class token of a vision transformer, by default DINOv2's ViT-L/14 with 1,024 features.

    Stein et al. (2023, arXiv 2306.04675) compare images in this space. Images are rounded to 8
    bits, resized to 224 × 224 (bicubic) and normalised with ImageNet's mean and standard
    deviation. The score is `fd_dinov2` for DINOv2's own model and `fd_{model}` for any other. A
    local file of weights is not compared with the published one.

    Arguments:
        weights: A local file of the model's weights; None downloads them from the hub.
        model: The name of a vision transformer in timm.

    Raises:
        UserError: If timm does not have the model, or its weights are missing, cannot be
            downloaded or are those of another model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | None = None, model: str = MODEL) -> None:
        super().__init__()
        self.name = "dinov2" if model == MODEL else model.replace(".", "_")
        self.model = model
        self.path = hub_file(model) if weights is None else weights_file(weights, "")
        self.network: nn.Module | None = None
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))
        if weights is not None:
            self.build()  # refuses a file that does not fit now, not after the run

    @property
    def num_features(self) -> int:  # type: ignore[override]
        """The number of features, F."""
        self.build()
        assert self.network is not None
        return int(self.network.num_features)  # type: ignore[arg-type]

    def build(self) -> None:
        """Builds the network, once.

        Raises:
            UserError: If the model is no vision transformer, or the weights do not fit it.
        """
        if self.network is not None:
            return
        import timm  # takes seconds to import: only where it is used
        from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

        known = timm.models.get_arch_name(self.model) if timm.is_model(self.model) else ""
        if known not in timm.list_models(module="vision_transformer"):
            raise UserError(
                f"metric.features: model must be one of timm's vision transformers, "
                f"got {self.model!r}; {MODEL} is DINOv2's"
            )
        network = timm.create_model(known, num_classes=0, img_size=SIDE, dynamic_img_size=True)
        assert isinstance(network, VisionTransformer)
        # The position embeddings are for the image size of the training, and are resampled.
        state = checkpoint_filter_fn(read_weights(self.path), network)
        state = {k: v for k, v in state.items() if not k.startswith("head.")}
        fill(network, state, self.path)
        self.network = network.requires_grad_(False).eval()

    def check(self, shape: Sequence[int]) -> None:
        """Checks that a shape is that of RGB or grey images.

        Raises:
            UserError: For any other shape.
        """
        check_rgb("metric.features: DINOv2", shape)

    def forward(self, x: Tensor) -> Tensor:
        """Returns features, (B, F), of images, (B, C, H, W), in [-1, 1]."""
        self.build()
        assert self.network is not None
        x = nn.functional.interpolate(
            eight_bit_rgb(x).float() / 255, (SIDE, SIDE), mode="bicubic", antialias=True
        )
        return self.network((x.clamp(0, 1) - self.mean) / self.std)


def hub_file(model: str) -> Path:
    """Returns timm's published weights of a model, downloaded once into the hub's cache.

    Raises:
        UserError: If the model has none, or they are out of reach.
    """
    import timm
    from huggingface_hub import hf_hub_download

    published = timm.get_pretrained_cfg(model, allow_unregistered=True)
    if published is None or not published.hf_hub_id:
        raise UserError(f"metric.features: timm has no weights of model={model!r}; see timm")
    try:
        return Path(hf_hub_download(published.hf_hub_id, "model.safetensors"))
    except Exception as error:  # the hub raises dozens of types
        raise UserError(
            f"weights: {published.hf_hub_id} is neither in the Hugging Face cache nor reachable "
            f"({type(error).__name__}); give a local copy, weights=FILE"
        ) from error

import pytest
import torch

from facetrain.config import ModelConfig
from facetrain.models import BACKBONES, build_backbone, normalise


@pytest.mark.parametrize(
    ("name", "convolutions"), [("iresnet18", 17), ("iresnet34", 33), ("iresnet50", 49), ("iresnet100", 99)]
)
def test_depth_and_names_are_the_fields(name, convolutions):
    backbone = BACKBONES[name](width=4, input_size=16, embedding_size=8)
    names = [key for key, tensor in backbone.state_dict().items() if tensor.dim() == 4 and "downsample" not in key]
    assert len(names) == convolutions
    assert {"conv1.weight", "layer1.0.conv1.weight", "layer4.0.downsample.0.weight"} <= set(backbone.state_dict())


def test_the_full_width_model_has_as_many_parameters_as_its_description_says():
    convolutions = 9 * (3 * 64 + 4 * 64**2 + 64 * 128 + 3 * 128**2 + 128 * 256 + 3 * 256**2 + 256 * 512 + 3 * 512**2)
    shortcuts = 64 * 64 + 64 * 128 + 128 * 256 + 256 * 512
    norms = 2 * (64 + (64 + 64 + 64 + 64) + (3 * 64 + 0) + (64 + 3 * 128) + 3 * 128 + (128 + 3 * 256) + 3 * 256)
    norms += 2 * ((256 + 3 * 512) + 3 * 512 + 512 + 512)
    prelus = 64 + 2 * (64 + 128 + 256 + 512)
    linear = 512 * 7 * 7 * 512 + 512
    backbone = build_backbone(ModelConfig())
    assert sum(p.numel() for p in backbone.parameters()) == convolutions + shortcuts + norms + prelus + linear


@pytest.mark.parametrize("size", [16, 40, 50, 112])
def test_any_input_size(size):
    model = ModelConfig(width=4, input_size=size, embedding_size=8)
    out = build_backbone(model).eval()(torch.zeros(2, 3, size, size))
    assert out.shape == (2, 8)


def test_checkpointing_changes_no_gradient_and_no_statistics():
    images = torch.randn(4, 3, 32, 32)
    grads, states = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = ModelConfig(width=4, input_size=32, embedding_size=8, gradient_checkpointing=recompute)
        backbone = build_backbone(model)
        backbone(images).square().mean().backward()
        grads.append([p.grad for p in backbone.parameters() if p.grad is not None])
        states.append(backbone.state_dict())
    assert len(grads[0]) > 50
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_embeddings_are_float32_under_bfloat16_autocast():
    backbone = build_backbone(ModelConfig(width=4, input_size=16, embedding_size=8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert backbone(torch.randn(2, 3, 16, 16)).dtype == torch.float32


def test_normalise():
    images = torch.tensor([[[[0, 255, 127]]]], dtype=torch.uint8)
    found = normalise(images)
    assert found.shape == (1, 3, 1, 1)
    assert torch.allclose(found.flatten(), torch.tensor([-1.0, 1.0, -0.5 / 127.5]))

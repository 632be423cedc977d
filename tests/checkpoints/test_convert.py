"""Backbones as files for others: insightface's own layout, built here from its source's names and shapes."""

import pytest
import torch
from made_up_states import saved_state
from safetensors import safe_open
from torch import nn

from facetrain.checkpoints import backbones
from facetrain.checkpoints.convert import convert
from facetrain.config import Config
from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.train import build_state


class TheirBlock(nn.Module):
    """insightface recognition/arcface_torch/backbones/iresnet.py, IBasicBlock: the names its checkpoints have."""

    def __init__(self, inplanes, planes, stride=1, downsample=None):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inplanes, eps=1e-05)
        self.conv1 = nn.Conv2d(inplanes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes, eps=1e-05)
        self.prelu = nn.PReLU(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes, eps=1e-05)
        self.downsample = downsample

    def forward(self, x):
        out = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return out + (x if self.downsample is None else self.downsample(x))


class TheirIResNet(nn.Module):
    """The same, IResNet, of any width; theirs is 64, with 7 x 7 pixels before ``fc``."""

    def __init__(self, layers, width, side, features):
        super().__init__()
        self.inplanes = width
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps=1e-05)
        self.prelu = nn.PReLU(width)
        for number, blocks in enumerate(layers):
            setattr(self, f"layer{number + 1}", self._make_layer(width << number, blocks))
        self.bn2 = nn.BatchNorm2d(width << 3, eps=1e-05)
        self.dropout = nn.Dropout(0)
        self.fc = nn.Linear((width << 3) * side * side, features)
        self.features = nn.BatchNorm1d(features, eps=1e-05)

    def _make_layer(self, planes, blocks):
        downsample = nn.Sequential(
            nn.Conv2d(self.inplanes, planes, 1, 2, bias=False), nn.BatchNorm2d(planes, eps=1e-05)
        )
        layers = [TheirBlock(self.inplanes, planes, 2, downsample)]
        self.inplanes = planes
        return nn.Sequential(*layers, *(TheirBlock(planes, planes) for _ in range(1, blocks)))

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.dropout(torch.flatten(self.bn2(x), 1))))


def _run(output, **model):
    """A run whose checkpoint has random weights and statistics."""
    sizes = {"name": "iresnet18", "width": 4, "input_size": 112, "embedding_size": 8}
    config = Config.model_validate({"output": output, "data": {"path": "unused"}, "model": sizes | model})
    state = build_state(config, torch.tensor([3, 4]).numpy(), World())
    generator = torch.Generator().manual_seed(0)
    for tensor in state.backbone.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    saved_state(state, {"config": config.model_dump(mode="json"), "num_classes": 2, "num_images": 7})
    return output


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return _run(tmp_path_factory.mktemp("run"))


def test_insightfaces_own_class_loads_it_and_gives_the_same_embeddings(run, tmp_path):
    remark = convert(run, tmp_path / "model.pt")
    assert remark.endswith("and end in 7 x 7 pixels, this model begins 4 wide and ends in 7 x 7")
    theirs = TheirIResNet([2, 2, 2, 2], width=4, side=7, features=8)
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert list(state) == list(theirs.state_dict())
    theirs.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    ours, _ = backbones.load_backbone(run)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(images), ours(images))


def test_the_fields_own_sizes_need_no_remark(tmp_path):
    run = _run(tmp_path / "run", width=64, embedding_size=512)
    assert convert(run, tmp_path / "model.pt") == ""


def test_as_safetensors_it_is_what_export_writes(run, tmp_path):
    assert convert(run, tmp_path / "new" / "model.safetensors") == ""
    found, model = backbones.load_backbone(tmp_path / "new" / "model.safetensors")
    expected, _ = backbones.load_backbone(run)
    assert model.width == 4
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
    assert backbones.fingerprint(tmp_path / "new" / "model.safetensors") == backbones.fingerprint(run)
    with safe_open(tmp_path / "new" / "model.safetensors", "pt") as file:
        assert {"model", "fingerprint", "facetrain"} <= file.metadata().keys()


def test_what_cannot_be_expressed_or_written_is_refused_and_nothing_is_left(run, tmp_path):
    relu = _run(tmp_path / "relu", activation="relu")
    with pytest.raises(InputError, match=r"model\.activation relu; insightface's layout knows prelu only"):
        convert(relu, tmp_path / "model.pt")
    convert(relu, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.pth must end in \.safetensors, or in \.pt"):
        convert(run, tmp_path / "model.pth")
    with pytest.raises(InputError, match="would change the checkpoint"):
        convert(run, backbones.find(run) / "model.pt")
    with pytest.raises(InputError, match="does not exist"):
        convert(tmp_path / "nothing", tmp_path / "model.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "relu"]


def test_the_same_weights_have_the_same_name_whatever_file_they_are_in(run, tmp_path):
    backbone, model = backbones.load_backbone(run)
    for name in ("a", "b"):  # safetensors orders a file's metadata at random
        backbones.write_backbone(tmp_path / f"{name}.safetensors", backbone, model, one="1", two="2", three="3")
        assert backbones.fingerprint(tmp_path / f"{name}.safetensors") == backbones.fingerprint(run)
    next(backbone.parameters()).data[0, 0, 0, 0] += 1e-6
    backbones.write_backbone(tmp_path / "a.safetensors", backbone, model)
    assert backbones.fingerprint(tmp_path / "a.safetensors") != backbones.fingerprint(run)

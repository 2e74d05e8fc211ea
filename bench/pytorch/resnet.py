"""ResNets with torchvision's names and initialisation (He et al. 2016; stride on the 3x3), so that torchvision need not
be installed."""
import torch
import torch.nn.functional as F
from torch import nn

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def convolution(inputs, outputs, kernel, stride=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Block(nn.Module):
    def __init__(self, inputs, planes, stride, bottleneck):
        super().__init__()
        outputs = planes * (4 if bottleneck else 1)
        if bottleneck:
            self.conv1, self.bn1 = convolution(inputs, planes, 1), nn.BatchNorm2d(planes)
            self.conv2, self.bn2 = convolution(planes, planes, 3, stride), nn.BatchNorm2d(planes)
            self.conv3, self.bn3 = convolution(planes, outputs, 1), nn.BatchNorm2d(outputs)
        else:
            self.conv1, self.bn1 = convolution(inputs, planes, 3, stride), nn.BatchNorm2d(planes)
            self.conv2, self.bn2 = convolution(planes, outputs, 3), nn.BatchNorm2d(outputs)
        self.bottleneck, self.downsample = bottleneck, None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y, inplace=True)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class ResNet(nn.Module):
    """fc: classes -> one linear layer; dim -> MoCo v2's head (linear, ReLU, linear to dim)."""

    def __init__(self, depth=50, stem="imagenet", width=64, classes=None, dim=None):
        super().__init__()
        bottleneck, channels = depth >= 50, width
        self.conv1 = convolution(3, width, 3) if stem == "cifar" else convolution(3, width, 7, 2)
        self.bn1, self.pool = nn.BatchNorm2d(width), stem != "cifar"
        for stage, count in enumerate(DEPTHS[depth]):
            planes, blocks = width * 2 ** stage, []
            for number in range(count):
                blocks.append(Block(channels, planes, 2 if stage and not number else 1, bottleneck))
                channels = planes * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = (nn.Linear(channels, classes) if dim is None else
                   nn.Sequential(nn.Linear(channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, dim)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if self.pool:
            x = F.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def load(model, tensors):
    """Parameters and running statistics under torchvision's names; all of them, and no other."""
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"another network: missing {missing[:3]}, unexpected {unexpected[:3]}")

"""The bare training loop that the stage `bare` holds the project's step against: no log, no checkpoint, no plan.

python benchmarks/gpu/bare_loop.py NETWORK CLASSES IMAGE_SIZE BATCH_SIZE DTYPE STEPS    → images per second
"""

import sys
import time

import torch
import torchvision
from torch.nn.functional import cross_entropy

name, *sizes, dtype_name, steps = sys.argv[1:]
(classes, side, batch_size), dtype = map(int, sizes), getattr(torch, dtype_name)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.backends.cudnn.benchmark = True
torch.set_float32_matmul_precision("high")

net = torchvision.models.get_model(name, num_classes=classes).to(device, memory_format=torch.channels_last)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-5, fused=True)
images = torch.randn(batch_size, 3, side, side, device=device).to(memory_format=torch.channels_last)
labels = torch.randint(classes, (batch_size,), device=device)
warmup = int(steps) // 5
for step in range(warmup + int(steps)):
    if step == warmup:
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        loss = cross_entropy(net(images).float(), labels, label_smoothing=0.1)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
if device.type == "cuda":
    torch.cuda.synchronize()
print(int(steps) * batch_size / (time.perf_counter() - started))

_base_ = '../lors-adamixer_r50_1x_coco.py'

model = dict(decoder=dict(stacks=dict(
    attention=dict(mode='lors', rank=8), offsets=dict(mode='lors', rank=8),
    ffn=dict(mode='lors', rank=8))))  # fmt: skip

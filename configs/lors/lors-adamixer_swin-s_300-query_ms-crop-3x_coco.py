_base_ = [
    '../_base_/models/adamixer_swin-s.py',
    '../_base_/datasets/coco_detection_ms-crop.py',
    '../_base_/schedules/adamw_3x_swin.py',
    '../_base_/default_runtime.py',
]

model = dict(num_queries=300, decoder=dict(
    num_groups=2, in_points=64, stacks=dict(
    mixing_kernels=dict(mode='lors', rank=16, num_param_groups='rising'),
    mixing_out_proj=dict(mode='lors', rank=8))))  # fmt: skip

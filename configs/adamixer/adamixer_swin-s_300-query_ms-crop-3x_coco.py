_base_ = [
    '../_base_/models/adamixer_swin-s.py',
    '../_base_/datasets/coco_detection_ms-crop.py',
    '../_base_/schedules/adamw_3x_swin.py',
    '../_base_/default_runtime.py',
]

model = dict(num_queries=300)

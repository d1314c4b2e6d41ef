_base_ = [
    '../_base_/models/lors-adamixer_r50.py',
    '../_base_/datasets/coco_detection_ms.py',
    '../_base_/schedules/adamw_3x_late.py',
    '../_base_/default_runtime.py',
]

# Short side 480 to 800 in steps of 32, long side at most 1333.
_base_ = './coco_detection.py'

scales = [
    (480, 1333), (512, 1333), (544, 1333), (576, 1333), (608, 1333),
    (640, 1333), (672, 1333), (704, 1333), (736, 1333), (768, 1333),
    (800, 1333),
]  # fmt: skip

train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='RandomChoiceResize', scales=scales, keep_ratio=True),
            dict(type='PackDetInputs'),
        ]
    )
)

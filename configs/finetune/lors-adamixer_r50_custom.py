# Fine-tune a COCO checkpoint on your own classes: copy this file and change
# data_root, classes and load_from. The annotations are in COCO's format; the
# stem, the decoder and everything but the class branch come from load_from.
# Here: BCCD (blood cells), https://github.com/Shenggan/BCCD_Dataset.
_base_ = '../lors/lors-adamixer_r50_1x_coco.py'

data_root = 'data/bccd/'
classes = ('RBC', 'WBC', 'Platelets')
load_from = 'checkpoints/lors-adamixer_r50_1x_coco.pth'

model = dict(decoder=dict(num_classes=3))
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='images/'),
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='images/'),
    )
)
test_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file='annotations/instances_test.json',
        data_prefix=dict(img='images/'),
    )
)
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = dict(ann_file=data_root + 'annotations/instances_test.json')

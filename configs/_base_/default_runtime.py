_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(
    imports=['lors_det.adamixer', 'lors_det.engine.visualizer'],
    allow_failed_imports=False,
)
visualizer = dict(type='BoundedDetVisualizer')
custom_hooks = [dict(type='NumClassCheckHook')]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))

_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(
    imports=['lors_det.adamixer'], allow_failed_imports=False
)
custom_hooks = [dict(type='NumClassCheckHook')]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))

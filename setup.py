# SPDX-License-Identifier: Apache-2.0
"""Package lors_det; configs and tools go where MIM looks for them."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_FILES = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Put configs, tools and the model index into ``lors_det/.mim``: linked
    in an editable installation, copied otherwise.
    """

    def run(self):
        super().run()
        editable = getattr(self, 'editable_mode', False)
        base = ROOT if editable else Path(self.build_lib)
        mim = base / 'lors_det' / '.mim'
        mim.mkdir(parents=True, exist_ok=True)
        for name in MIM_FILES:
            target = mim / name
            if target.is_symlink() or target.is_file():
                target.unlink()
            elif target.is_dir():
                shutil.rmtree(target)
            if editable:
                target.symlink_to(Path('..', '..', name))
            elif (ROOT / name).is_file():
                shutil.copyfile(ROOT / name, target)
            else:
                shutil.copytree(
                    ROOT / name,
                    target,
                    ignore=shutil.ignore_patterns('__pycache__'),
                )


def version():
    text = (ROOT / 'lors_det' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"__version__ = '(.+)'", text)[1]


setup(
    name='lors_det',
    version=version(),
    description='LORS and AdaMixer for MMDetection 3.x',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['lors_det', 'lors_det.*']),
    package_data={'lors_det': ['py.typed']},
    install_requires=[
        'torch>=2.7,<2.15',
        'torchvision>=0.22',
        'pandas>=2.2',
        'pillow>=10.1',
        'pycocotools>=2.0.8',
        'safetensors>=0.4',
        'tqdm>=4.60',
    ],
    # mmengine, mmcv and mmdet come under two names each, and either writes
    # over the files of the other: none is required, users choose.
    extras_require={
        'onedl': [
            'onedl-mmengine>=0.10.10,<0.11',
            'onedl-mmcv>=2.3.6,<2.4',
            'onedl-mmdetection>=3.5,<3.6',
        ],
        'openmmlab': [
            'mmengine>=0.10.7,<0.11',
            'mmcv-lite>=2.1,<2.2',
            'mmdet>=3.3,<3.4',
        ],
        'demo': ['gradio>=5'],
        'digits': ['scikit-learn>=1.5'],
        'hub': ['huggingface_hub>=0.30'],
        'onnx': ['onnx>=1.17', 'onnxruntime>=1.20'],
        # Written by way of ONNX.
        'openvino': ['onnx>=1.17', 'onnxruntime>=1.20', 'openvino>=2025'],
    },
    entry_points={'console_scripts': ['lors-det = lors_det.cli.main:main']},
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
)

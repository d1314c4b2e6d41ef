# SPDX-License-Identifier: Apache-2.0
"""Settings of Sphinx: ``make docs`` writes the site to build/docs."""

import os
import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

import lors_det

project = 'lors_det'
author = copyright = 'The lors_det developers'
version = release = lors_det.__version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
]
myst_fence_as_directive = ['math']
myst_heading_anchors = 3

default_role = 'py:obj'  # `name` in a docstring
autodoc_member_order = 'bysource'
maximum_signature_line_length = 60
napoleon_numpy_docstring = False

html_theme = 'furo'
html_math_renderer = 'mathml'
html_title = 'lors_det'
html_static_path = ['_static']
html_css_files = ['site.css']

# Links that lead out of docs/ (../configs) work on GitHub. On the site they
# become links to the repository; in a local build, to the checkout.
if 'READTHEDOCS' in os.environ:
    address = os.environ['READTHEDOCS_GIT_CLONE_URL'].removesuffix('.git')
    commit = os.environ['READTHEDOCS_GIT_COMMIT_HASH']
    repository = f'{address}/blob/{commit}'
else:
    repository = '../..'
myst_url_schemes = {
    'http': None,
    'https': None,
    'repository': repository + '/{{path}}',
}


def link_to_repository(app, docname, source):
    """Replace the links of a document, but for images, that leave docs/."""
    source[0] = re.sub(
        r'(?<!!)(\[[^]]*\]\()\.\./', r'\1repository:', source[0]
    )


def write_equation(translator, node):
    """Write an equation as MathML, which browsers draw without a script."""
    block = isinstance(node, nodes.math_block)
    equation = tex2mathml(node.astext(), as_block=block)
    tag = 'div' if block else 'span'
    translator.body.append(f'<{tag} class="math">{equation}</{tag}>')
    raise nodes.SkipNode


def setup(app):
    """Connect the above."""
    app.connect('source-read', link_to_repository)
    write = (write_equation, None)
    app.add_html_math_renderer('mathml', write, write)

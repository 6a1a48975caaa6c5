"""``python -m zennit_attn`` is the command ``zennit-attn``."""

import sys

from .cli import main

sys.exit(main())

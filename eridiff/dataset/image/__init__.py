"""Pictures: their bytes, their pixels, their colours."""

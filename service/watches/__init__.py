"""Watched questions: asked again when a document that they are about changes, and told of what became different."""

"""`folio eval qa`: questions about documents, answered by the whole service and held to the sentences that answer them.

What is measured and how is said in README.md beside this file.
"""

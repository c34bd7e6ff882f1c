"""Text in: corpora, tokenizers, filters, encoded ids, batches."""

"""aoq inside other libraries."""

"""The habits of the public API, after Google's API Improvement Proposals (https://google.aip.dev):
resource names, pages, filters, masks, etags, enums as words. Knows no service."""

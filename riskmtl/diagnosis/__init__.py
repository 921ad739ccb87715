"""What training did to each head, as sentences and a page."""

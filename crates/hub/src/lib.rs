//! Fetches model folders from the Hugging Face hub.

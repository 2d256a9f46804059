"""The question: what a sweep file may say, and how it is read and checked."""

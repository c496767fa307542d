"""Image rewards behind one contract; usable from any trainer."""

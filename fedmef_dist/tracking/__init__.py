"""Where metrics go while a run goes on."""

"""The model room: packages, runtimes and NumPy functions; knows neither service nor training."""

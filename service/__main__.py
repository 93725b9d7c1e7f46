"""`python -m service`: the API in this process."""

from service.server import serve
from service.settings import Settings

if __name__ == "__main__":
    serve(Settings())

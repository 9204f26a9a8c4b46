# flatminima on the CPU: docker build -t flatminima . && docker run --rm -v "$PWD:/work" flatminima measure --help
FROM python:3.12-slim
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN pip install --no-cache-dir "/src[data,hf]" && useradd --create-home user
USER user
WORKDIR /work
ENTRYPOINT ["flatminima"]
CMD ["--help"]

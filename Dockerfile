# The image of router, connector and client: `docker build -t tunnelsync .`
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml LICENSE README.md ./
COPY src src
RUN pip wheel --no-cache-dir --wheel-dir /wheels .

FROM python:3.13-slim
# A number, so that an orchestrator can see that it is not root.
RUN useradd --uid 10001 --user-group --home-dir /var/lib/tunnelsync --create-home tunnelsync \
    && mkdir /data && chown 10001:10001 /data
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-index --find-links /wheels tunnelsync && rm -rf /wheels
ENV PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["tunnelsync"]
CMD ["--help"]

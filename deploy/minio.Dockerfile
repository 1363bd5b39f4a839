# MinIO from its Go module, since the project serves no images any more.
FROM golang:1.26-alpine AS build
ARG VERSION=v0.0.0-20260212201848-7aac2a2c5b7c
RUN CGO_ENABLED=0 GOBIN=/out go install -trimpath -ldflags '-s -w' \
    github.com/minio/minio@${VERSION}

FROM alpine:3.22
RUN adduser -D -u 10002 minio && mkdir /data && chown 10002:10002 /data
COPY --from=build /out/minio /usr/local/bin/minio
USER 10002:10002
VOLUME /data
EXPOSE 9000
ENTRYPOINT ["minio"]
CMD ["server", "--address", ":9000", "/data"]

# The image that stands in for python:3.13-slim, from what standin.sh wrote.
FROM scratch
ADD base.tar /
ENV PATH=/usr/local/bin:/usr/bin:/bin

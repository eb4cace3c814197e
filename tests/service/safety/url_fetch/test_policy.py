"""Which URLs are fetched at all, and the tricks that are not."""

import pytest

from service.safety.url_fetch import Target, UrlPolicy, UrlRefused, url_of

POLICY = UrlPolicy.from_text("images.example.org, *.cdn.example.com")


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://images.example.org/a.jpg", ("images.example.org", "/a.jpg")),
        ("https://images.example.org", ("images.example.org", "/")),
        ("HTTPS://Images.Example.ORG:443/a?b=c#d", ("images.example.org", "/a?b=c")),
        ("https://a.cdn.example.com/%C3%A4", ("a.cdn.example.com", "/%C3%A4")),
        ("https://a.b.cdn.example.com/", ("a.b.cdn.example.com", "/")),
    ],
)
def test_urls_of_allowed_hosts_are_read(url: str, target: tuple[str, str]) -> None:
    host, path = target
    assert POLICY.target_of(url) == Target(host, 443, path)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://images.example.org/", "only https"),
        ("ftp://images.example.org/", "only https"),
        ("file:///etc/passwd", "only https"),
        ("https://other.example.org/", "does not fetch from"),
        ("https://images.example.org.evil.net/", "does not fetch from"),
        ("https://evilimages.example.org/", "does not fetch from"),
        ("https://cdn.example.com/", "does not fetch from"),
        ("https://evilcdn.example.com/", "does not fetch from"),
        ("https://images.example.org:8443/", "does not fetch from"),
        ("https://images.example.org:22/", "does not fetch from"),
        ("https://images.example.org:x/", "not a URL"),
        ("https://images.example.org:99999/", "not a URL"),
        ("https://user@images.example.org/", "user name"),
        ("https://user:word@images.example.org/", "user name"),
        ("https://images.example.org@127.0.0.1/", "user name"),
        ("https://@images.example.org/", "user name"),
        ("https://127.0.0.1/", "full name"),
        ("https://2130706433/", "full name"),
        ("https://0x7f000001/", "full name"),
        ("https://0177.0.0.1/", "full name"),
        ("https://127.1/", "full name"),
        ("https://1.0x7f/", "full name"),
        ("https://[::1]/", "full name"),
        ("https://[::ffff:127.0.0.1]/", "full name"),
        ("https://[fe80::1%25eth0]/", "full name"),
        ("https://[/", "not a URL"),
        ("https://localhost/", "full name"),
        ("https://images.example.org./", "full name"),
        ("https://images..example.org/", "full name"),
        ("https://images_example.org/", "full name"),
        ("https:///a.jpg", "full name"),
        ("https://images.ex\u00e4mple.org/", "plain ASCII"),
        ("https://images\u3002example.org/", "plain ASCII"),
        ("https://p\u0131ctures.example.org/", "plain ASCII"),
        ("https://IMAGES.EXAMPLE.ORG\u212a/", "plain ASCII"),
        ("https://images.example.org\\@evil.net/", "plain ASCII"),
        ("https://images.example.org/ a", "plain ASCII"),
        ("https://images.example.org/\r\nX: y", "plain ASCII"),
        ("https://images.example.org/\x00", "plain ASCII"),
        ("https://images.example.org/" + "a" * 2048, "2048"),
    ],
)
def test_all_others_are_refused_and_say_why(url: str, words: str) -> None:
    with pytest.raises(UrlRefused, match=words):
        POLICY.target_of(url)


@pytest.mark.parametrize(
    "text",
    [
        *("", "*", "*.", "*.com", "example", "127.0.0.1", "::1", "a.*.org", "https://a.org"),
        *("a.org/b", "a.org,", "ex\u00e4mple.org", "a.org:443", "*.*.org"),
    ],
)
def test_hosts_that_are_none_stop_the_start(text: str) -> None:
    with pytest.raises(ValueError, match="url_hosts"):
        UrlPolicy.from_text(text)


@pytest.mark.parametrize("text", ["https://a.org/b", "http://a", "ftp://a", "x://"])
def test_urls_are_told_from_images(text: str) -> None:
    assert url_of(text) == text


@pytest.mark.parametrize("text", ["", "iVBORw0KGgo=", "data:image/png;base64,iVBO", "data:a://b"])
def test_images_are_told_from_urls(text: str) -> None:
    assert url_of(text) is None

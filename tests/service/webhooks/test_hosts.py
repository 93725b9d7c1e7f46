"""`service.webhooks.hosts`: each way past the operator's list or into his network is refused."""

import ipaddress

import pytest
from pydantic import ValidationError

from service.settings import Settings
from service.webhooks.hosts import WebhookHosts, WebhookRefused, is_public, shown
from state.settings import setting_errors
from tests.service.receiver import SECRET

LIST = (
    "hooks.example.com, *.example.org, other.example:8443, http://plain.example, http://10.0.0.5:9000, "
    "[2001:db8::1], 10.1.0.0/16"
)
PUBLIC = "93.184.215.14"


def hosts(*addresses, setting=LIST):
    """Allow the hosts of the list, which all have these addresses."""
    return WebhookHosts(setting, resolve=lambda _host, _port: list(addresses or (PUBLIC,)))


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://hooks.example.com/a?b=c#d", "https://hooks.example.com:443"),
        ("HTTPS://HOOKS.Example.COM:443", "https://hooks.example.com:443"),
        ("https://a.b.example.org/", "https://a.b.example.org:443"),
        ("https://other.example:8443/x", "https://other.example:8443"),
        ("http://plain.example/x", "http://plain.example:80"),
        ("http://10.0.0.5:9000/x", "http://10.0.0.5:9000"),
        ("https://[2001:DB8:0::1]/x", "https://[2001:db8::1]:443"),
    ],
)
def test_an_allowed_address_is_taken_apart(url, origin):
    target = hosts().target(url)
    assert target.origin == origin
    assert hosts().addresses(target)


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com.evil.example/",
        "https://evilexample.org/",
        "https://example.org/",
        "https://hooks.example.com:8443/",
        "https://other.example/",
        "http://hooks.example.com/",
        "http://hooks.example.com:443/",
        "https://plain.example/",
        "https://10.0.0.5:9000/",
        "http://10.0.0.6:9000/",
        "https://10.1.0.1/",  # a network allows addresses of allowed hosts, and is no host itself
        "https://evil.example/#https://hooks.example.com/",
        "https://evil.example\\@hooks.example.com/",
        "https://hooks.example.com@evil.example/",
        "https://evil.example?hooks.example.com",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://[::ffff:10.0.0.5]:9000/",
        "https://hooks.example.com:99999/",
    ],
)
def test_another_host_scheme_or_port_is_refused(url):
    with pytest.raises(WebhookRefused):
        hosts().target(url)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "absolute"),
        ("hooks.example.com/a", "absolute"),
        ("//hooks.example.com/a", "absolute"),
        ("ftp://hooks.example.com/a", "absolute"),
        ("file:///etc/passwd", "absolute"),
        ("https:///a", "absolute"),
        ("https://hooks.example.com/\n", "no URL"),
        ("https://[", "no host name"),
        ("https://ho oks.example.org/", "no host name"),
        ("https://127.0.0.1%00.example.org/", "no host name"),
        ("https://hooks.example.com./", "no host name"),
        ("https://-.example.org/", "no host name"),
        ("https://user:secret@hooks.example.com/", "password"),
    ],
)
def test_what_is_no_plain_url_is_refused(url, why):
    with pytest.raises(WebhookRefused, match=why) as refusal:
        hosts().target(url)
    assert "secret" not in str(refusal.value)


PRIVATE = [
    "127.0.0.1",
    "127.8.9.10",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "192.0.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:a00:1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",
    "fec0::1",
    "ff02::1",
    "2001:db8::2",
    "no address",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_allowed_name_with_a_private_address_is_refused(address):
    allowed = hosts(PUBLIC, address)
    with pytest.raises(WebhookRefused, match="not public"):
        allowed.addresses(allowed.target("https://hooks.example.com/"))
    with pytest.raises(WebhookRefused, match="not public"):
        allowed.require("https://hooks.example.com/")


@pytest.mark.parametrize("address", [PUBLIC, "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_a_public_address_is_connected_to(address):
    allowed = hosts(address)
    assert allowed.addresses(allowed.target("https://hooks.example.com/")) == [address]


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "10.0.0.5", "2001:db8::1"])
def test_a_private_address_is_allowed_by_naming_it_or_its_network(address):
    allowed = hosts(address)
    assert allowed.addresses(allowed.target("https://hooks.example.com/")) == [address]


def test_a_name_without_an_address_may_get_one_later():
    def resolve(_host, _port):
        raise OSError("no such host")

    allowed = WebhookHosts("hooks.example.com", resolve)
    allowed.require("https://hooks.example.com/")
    with pytest.raises(OSError, match="no such host"):
        allowed.addresses(allowed.target("https://hooks.example.com/"))


def test_the_system_knows_what_localhost_is():
    allowed = WebhookHosts("localhost")
    with pytest.raises(WebhookRefused, match="not public"):
        allowed.require("https://localhost/")


def test_without_hosts_every_webhook_is_refused():
    with pytest.raises(WebhookRefused, match="ECKART_WEBHOOK_HOSTS"):
        hosts(setting="").target("https://hooks.example.com/")


def test_a_shown_url_has_no_secrets():
    assert shown("https://u:p@hooks.example.com:8443/a/b?token=t#f") == "https://hooks.example.com:8443/a/b"


def test_tunnels_count_as_private():
    assert not is_public(ipaddress.ip_address("2002:808:808::1"))


@pytest.mark.parametrize(
    "setting",
    ["*", "*.", "https://", "a b", "host:0", "host:99999", "host/path", "10.1.0.0/16", "10.1.0.1/16", "ftp://a",
     "[zz::]", "user@host", "https://host/"],
)  # fmt: skip
def test_a_list_with_a_fault_stops_the_start(setting):
    with pytest.raises(ValidationError) as refusal:
        Settings(webhook_hosts=setting, webhook_secret=SECRET)
    assert setting_errors(refusal.value)[0].startswith("ECKART_WEBHOOK_HOSTS: ")


@pytest.mark.parametrize(
    "secret",
    ["", " ", "whsec_", "whsec_c2hvcnQ=", SECRET.removeprefix("whsec_"), "whsec_C2FVsBQI hrsc", f"{SECRET}!"],
)
def test_a_weak_or_malformed_secret_stops_the_start(secret):
    with pytest.raises(ValidationError) as refusal:
        Settings(webhook_hosts="hooks.example.com", webhook_secret=secret)
    line, *_ = setting_errors(refusal.value)
    assert line.startswith("ECKART_WEBHOOK_SECRET: ")
    assert len(secret) < 7 or secret not in line


def test_hosts_without_a_secret_stop_the_start():
    with pytest.raises(ValidationError) as refusal:
        Settings(webhook_hosts="hooks.example.com")
    assert "ECKART_WEBHOOK_SECRET" in setting_errors(refusal.value)[0]


def test_the_secret_is_not_printed():
    settings = Settings(webhook_hosts="hooks.example.com", webhook_secret=f"{SECRET} {SECRET}")
    assert len(settings.webhook_secrets.of("")) == 2
    assert SECRET not in repr(settings)

package oauthhttp

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

const maxCertHeader = 16 << 10

// CertificateBehindProxies is an Options.Certificate for a service whose TLS ends at a proxy: it reads the client's
// certificate from a header, but only of requests that come from one of the trusted addresses; of others it believes
// nothing. The header holds what RFC 9440 §2.1 says of Client-Cert, or a PEM block in URL encoding, as nginx's
// $ssl_client_escaped_cert. The proxy must remove the header from requests of clients that showed none.
//
// verified says that the proxy lets through only certificates whose chain it has checked. Where it asks for them without a
// check, as self-signed ones need, it is false, and tls_client_auth takes none.
func CertificateBehindProxies(header string, verified bool, trusted ...netip.Prefix) func(*http.Request) (*x509.Certificate, bool) {
	return func(r *http.Request) (*x509.Certificate, bool) {
		peer, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil {
			return nil, false
		}
		from := peer.Addr().Unmap().WithZone("")
		for _, p := range trusted {
			if p.Contains(from) {
				cert := headerCertificate(r.Header.Values(header))
				return cert, verified && cert != nil
			}
		}
		return nil, false
	}
}

// headerCertificate reads a header that must have come once.
func headerCertificate(values []string) *x509.Certificate {
	if len(values) != 1 || len(values[0]) > maxCertHeader {
		return nil
	}
	v := strings.TrimSpace(values[0])
	var der []byte
	if len(v) >= 2 && v[0] == ':' && v[len(v)-1] == ':' { // a byte sequence of RFC 8941 §3.3.5
		raw, err := base64.StdEncoding.DecodeString(v[1 : len(v)-1])
		if err != nil {
			return nil
		}
		der = raw
	} else {
		text, err := url.PathUnescape(v) // a plus is base64's own
		if err != nil {
			return nil
		}
		block, rest := pem.Decode([]byte(text))
		if block == nil || block.Type != "CERTIFICATE" || len(strings.TrimSpace(string(rest))) > 0 {
			return nil
		}
		der = block.Bytes
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil
	}
	return cert
}

package oauthhttp_test

import (
	"encoding/base64"
	"encoding/pem"
	"net/http"
	"net/netip"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
)

func TestCertificatesBehindProxies(t *testing.T) {
	t.Parallel()
	cert, _ := newCertificate(t, "worker.example.com")
	structured := ":" + base64.StdEncoding.EncodeToString(cert.Raw) + ":"
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	escaped := url.PathEscape(string(block))
	const from, elsewhere = "10.1.2.3:4711", "192.0.2.1:4711"
	read := oauthhttp.CertificateBehindProxies("Client-Cert", true, netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8"))
	for name, x := range map[string]struct {
		peer   string
		values []string
		found  bool
	}{
		"RFC 9440":              {from, []string{structured}, true},
		"PEM, escaped":          {from, []string{escaped}, true},
		"IPv6":                  {"[fd00::1]:1", []string{structured}, true},
		"IPv4 in IPv6":          {"[::ffff:10.0.0.1]:1", []string{structured}, true},
		"a stranger's header":   {elsewhere, []string{structured}, false},
		"no address":            {"@", []string{structured}, false},
		"none":                  {from, nil, false},
		"empty":                 {from, []string{""}, false},
		"two":                   {from, []string{structured, structured}, false},
		"two in one":            {from, []string{url.PathEscape(string(block) + string(block))}, false},
		"a colon":               {from, []string{":"}, false},
		"no base64":             {from, []string{":!:"}, false},
		"no certificate":        {from, []string{":AAAA:"}, false},
		"a broken escape":       {from, []string{"%zz"}, false},
		"another kind of PEM":   {from, []string{url.PathEscape(string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: cert.Raw})))}, false},
		"longer than any chain": {from, []string{structured + string(make([]byte, 20<<10))}, false},
	} {
		r := &http.Request{RemoteAddr: x.peer, Header: http.Header{"Client-Cert": x.values}}
		got, verified := read(r)
		require.Equal(t, x.found, verified, name)
		require.Equal(t, x.found, got != nil && got.Equal(cert), name)
	}

	// At the endpoints: what the proxy did not verify names nobody, and binds all the same.
	for _, verified := range []bool{true, false} {
		s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) {
			o.Certificate = oauthhttp.CertificateBehindProxies("Client-Cert", verified, netip.MustParsePrefix("10.0.0.0/8"))
		})
		s.client("tls", func(c *apitoken.Client) { c.AuthMethod, c.TLSName = "tls_client_auth", "dns:worker.example.com" })
		s.client("bound", func(c *apitoken.Client) { c.BindCertificate = true })
		peer := func(addr string) option { return func(r *http.Request) { r.RemoteAddr = addr } }
		a := s.token(merge(own, "client_id", "tls"), header("Client-Cert", structured), peer(from))
		if verified {
			a.ok()
		} else {
			a.refused(401, "invalid_client")
		}
		s.token(merge(own, "client_id", "tls"), header("Client-Cert", structured), peer(elsewhere)).refused(401, "invalid_client")
		b := s.token(own, s.as("bound"), header("Client-Cert", structured), peer(from)).ok()
		require.Equal(t, map[string]any{"x5t#S256": printOf(cert)}, claims(t, b.text("access_token"))["cnf"])
		s.token(own, s.as("bound"), header("Client-Cert", structured), peer(elsewhere)).refused(400, "invalid_request")
	}
}

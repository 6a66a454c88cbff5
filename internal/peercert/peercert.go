// Package peercert reads the certificate that the client of a request showed in TLS.
package peercert

import (
	"crypto/x509"
	"net/http"
	"time"
)

// Of is the certificate of r's connection, nil if there is none, and whether its chain was verified: by the listener, or here
// up to one of cas, which may be nil.
func Of(r *http.Request, cas *x509.CertPool, now time.Time) (cert *x509.Certificate, verified bool) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, false
	}
	cert = r.TLS.PeerCertificates[0]
	if len(r.TLS.VerifiedChains) > 0 {
		return cert, true
	}
	if cas == nil {
		return cert, false
	}
	between := x509.NewCertPool()
	for _, c := range r.TLS.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := cert.Verify(x509.VerifyOptions{Roots: cas, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return cert, err == nil
}

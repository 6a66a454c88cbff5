// Package clientauth finds out whether a client is who it says: by a secret, by a JWT that it signs (RFC 7523), or by the
// certificate of its TLS connection (RFC 8705). It owns the methods of authentication, the making and the stored form of secrets and
// registration tokens, the queue for slow hashes, and the counts of failures. It keeps no list of clients: whoever calls brings
// the Credentials.
//
// It promises that the time of an answer doesn't tell whether a client exists, whether it has a secret, or how many; that
// slow hashes never take more than half of the processors; and that a stranger cannot lock a client out: generated secrets
// never wait, and clients with a chosen secret come before made-up names.
//
// Order: a secret is compared by the fast way first, then by what was right last, then by slow hashes after a place in the
// queue was given; what convinced is asked last whether a rule has ended it. The queue has one lock, held for its lists alone;
// nothing else is locked meanwhile. There is no I/O but in two functions of the Config: Once, for an assertion that is good, and Read,
// for the key of a tag that this process has not heard of.
//
// Package clients calls it for whoever authenticates, and the root where it makes secrets and where one has leaked.
package clientauth

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/jws"
)

const (
	maxKeys      = 6 << 10 // bytes of a client's key set
	maxNameValue = 1024    // bytes
)

// Keys reads a client's public JWK set (RFC 7517 §5): the keys that verify its assertions, and the SHA-256 of its
// certificates. An empty set has none. fault.InvalidRequest: it is no such set, or holds a private key.
func Keys(set []byte) (keys []*jws.PublicKey, certs [][32]byte, _ error) {
	if len(set) == 0 {
		return nil, nil, nil
	}
	if len(set) > maxKeys {
		return nil, nil, fault.Fail(fault.InvalidRequest, "a client's Keys have at most %d bytes", maxKeys)
	}
	keys, _, err := jws.ParseJWKS(set, nil)
	if err != nil {
		return nil, nil, &fault.Error{Code: fault.InvalidRequest, Detail: "a client's Keys are no JWK set (RFC 7517 §5)", Cause: err}
	}

	var doc struct {
		Keys []struct {
			Chain  []string `json:"x5c"`
			Print  string   `json:"x5t#S256"`
			D      string   `json:"d"`
			Secret string   `json:"k"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(set, &doc); err != nil {
		return nil, nil, &fault.Error{Code: fault.InvalidRequest, Detail: "a client's Keys", Cause: err}
	}
	for _, k := range doc.Keys {
		if k.D != "" || k.Secret != "" {
			return nil, nil, fault.Fail(fault.InvalidRequest, "a client's Keys hold a private key")
		}
		if len(k.Chain) > 0 {
			if der, err := base64.StdEncoding.DecodeString(k.Chain[0]); err == nil {
				certs = append(certs, sha256.Sum256(der))
			}
		} else if sum, err := base64.RawURLEncoding.DecodeString(k.Print); err == nil && len(sum) == sha256.Size {
			certs = append(certs, [32]byte(sum))
		}
	}
	return keys, certs, nil
}

// checkName refuses what is not the form of a certificate's name: "dn:", "dns:", "uri:", "ip:" or "email:" and the value.
func checkName(name string) error {
	kind, v, ok := strings.Cut(name, ":")
	if ok && v != "" && len(v) <= maxNameValue {
		switch kind {
		case "dn", "dns", "uri", "email":
			return nil
		case "ip":
			if _, err := netip.ParseAddr(v); err == nil {
				return nil
			}
		}
	}
	return fault.Fail(fault.InvalidRequest, "TLSName %q is not dn:, dns:, uri:, ip: or email: and a name (RFC 8705 §2.1.2)", name)
}

// named reports whether a certificate bears a name in the form of checkName.
func named(cert *x509.Certificate, name string) bool {
	kind, v, _ := strings.Cut(name, ":")
	switch kind {
	case "dn":
		var rdn pkix.RDNSequence
		rest, err := asn1.Unmarshal(cert.RawSubject, &rdn)
		return err == nil && len(rest) == 0 && rdn.String() == v
	case "dns":
		return slices.ContainsFunc(cert.DNSNames, func(n string) bool { return strings.EqualFold(n, v) })
	case "uri":
		for _, u := range cert.URIs {
			if u.String() == v {
				return true
			}
		}
	case "ip":
		want, err := netip.ParseAddr(v)
		for _, ip := range cert.IPAddresses {
			if got, ok := netip.AddrFromSlice(ip); err == nil && ok && got.Unmap() == want.Unmap() {
				return true
			}
		}
	case "email":
		return slices.Contains(cert.EmailAddresses, v)
	}
	return false
}

// valid reports whether a certificate is in its lifetime. Ask of a chain that was verified too: the connection that showed it
// may be older than its end.
func valid(cert *x509.Certificate, now time.Time) bool {
	return !now.Before(cert.NotBefore) && !now.After(cert.NotAfter)
}

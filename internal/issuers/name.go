// The check of an issuer's name.

package issuers

import (
	"net"
	"net/url"
	"strings"
)

// CheckName says why iss cannot be an issuer (RFC 8414 §2), "" if it can.
func CheckName(iss string) string {
	u, err := url.Parse(iss)
	switch {
	case iss == "":
		return "is required"
	case err != nil || u.Host == "" || u.User != nil:
		return "must be a URL such as https://auth.example.com"
	case u.RawQuery != "" || u.Fragment != "" || strings.ContainsAny(iss, "?#"):
		return "must have no query and no fragment (RFC 8414 §2)"
	case len(iss) > 512:
		return "is over 512 bytes"
	case Secure(u):
		return ""
	case u.Scheme == "http":
		return "must be https: http is for loopback only"
	}
	return "must be an https URL"
}

// Secure reports whether u is https, or http on loopback.
func Secure(u *url.URL) bool { return u.Scheme == "https" || u.Scheme == "http" && Loopback(u) }

// Loopback reports whether u leads to this machine.
func Loopback(u *url.URL) bool {
	host := u.Hostname()
	ip := net.ParseIP(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || ip != nil && ip.IsLoopback()
}

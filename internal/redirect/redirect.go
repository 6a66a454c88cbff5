// Package redirect says which redirect URIs a client may register, and which of them a request names. It is a leaf
// calculation: the root checks what is registered, the authorization endpoint what is asked for.
package redirect

import (
	"errors"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

const maxURI = 2048

// systems are schemes that lead into a browser or another program that everybody has: no program of a client's answers there.
var systems = []string{"about", "blob", "chrome", "content", "data", "file", "filesystem", "ftp", "intent", "jar", "javascript", "mailto", "resource", "sms", "tel",
	"urn", "vbscript", "view-source", "ws", "wss"}

// Scheme reports why name cannot be a private-use scheme (RFC 8252 §7.1): it is one of a browser's, or no scheme (RFC 3986 §3.1).
func Scheme(name string) error {
	u, err := url.Parse(name + ":/")
	switch {
	case err != nil || u.Scheme != name:
		return errors.New("is no URI scheme in lower case")
	case name == "http" || name == "https" || slices.Contains(systems, name):
		return errors.New("is not a scheme of a program's own")
	}
	return nil
}

// Check reports why uri cannot be registered (RFC 6749 §3.1.2, RFC 8252 §7): it is an absolute URI without fragment
// and user; https, http on a loopback host, or a private-use scheme with a dot in its name, or one without for which own says so.
func Check(uri string, own func(scheme string) bool) error {
	if len(uri) > maxURI {
		return errors.New("is over 2048 bytes")
	}
	for i := range len(uri) {
		if uri[i] <= 0x20 || uri[i] >= 0x7f || uri[i] == '"' || uri[i] == '<' || uri[i] == '>' || uri[i] == '\\' || uri[i] == '*' {
			return errors.New("holds characters that a URI does not, or a wildcard")
		}
	}
	u, err := url.Parse(uri)
	switch {
	case err != nil || u.Scheme == "":
		return errors.New("is not an absolute URI")
	case strings.ContainsRune(uri, '#'):
		return errors.New("has a fragment (RFC 6749 §3.1.2)")
	case u.User != nil:
		return errors.New("names a user")
	}
	switch scheme := u.Scheme; {
	case scheme == "https":
		if u.Hostname() == "" {
			return errors.New("has no host")
		}
	case scheme == "http":
		if u.Hostname() != "localhost" && !loopback(u.Hostname()) {
			return errors.New("is http and not on the loopback interface (RFC 8252 §7.3)")
		}
	case slices.Contains(systems, scheme):
		return errors.New("has a scheme that is not a program's own")
	case !strings.Contains(scheme, ".") && !own(scheme):
		return errors.New("has a scheme that is neither https nor a reversed domain name (RFC 8252 §7.1)")
	}
	return nil
}

// Local reports whether a URI that Check has passed leads to a program on the user's machine: a loopback address, or a scheme of
// a program's own.
func Local(uri string) bool {
	u, err := url.Parse(uri)
	return err == nil && (u.Scheme != "https" || u.Hostname() == "localhost" || loopback(u.Hostname()))
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback() && a.Zone() == ""
}

// Match reports whether given is one of the registered URIs: byte for byte (RFC 9700 §2.1), but that http on a
// loopback address is taken on any port (RFC 8252 §7.3).
func Match(registered []string, given string) bool {
	port := ""
	for _, r := range registered {
		if r == given {
			return true
		}
		if !strings.HasPrefix(r, "http://") || !strings.HasPrefix(given, "http://") {
			continue
		}
		if port == "" {
			port = withoutPort(given)
		}
		if port != "" && withoutPort(r) == port {
			return true
		}
	}
	return false
}

// withoutPort is uri without its port, if it is http on a loopback address and well-formed; else "".
func withoutPort(uri string) string {
	if Check(uri, func(string) bool { return false }) != nil {
		return ""
	}
	rest := strings.TrimPrefix(uri, "http://")
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	host := rest[:end]
	if at := strings.LastIndexByte(host, ':'); at > strings.LastIndexByte(host, ']') {
		p := host[at+1:]
		if p == "" || len(p) > 5 || strings.Trim(p, "0123456789") != "" {
			return ""
		}
		host = host[:at]
	}
	if !loopback(strings.Trim(host, "[]")) {
		return "" // a name may resolve to anything (RFC 8252 §8.3)
	}
	return "http://" + host + rest[end:]
}

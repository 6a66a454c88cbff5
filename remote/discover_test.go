package remote_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/remote"
)

// TestDiscover finds an issuer's keys by either kind of metadata, and takes neither another issuer's nor an address that is not the
// public Internet's.
func TestDiscover(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	var mu sync.Mutex
	paths := map[string]string{} // what the server has
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		body, ok := paths[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if to, ok := strings.CutPrefix(body, "to "); ok {
			http.Redirect(w, r, to, http.StatusFound)
			return
		}
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(server.Close)
	realm := server.URL + "/realms/shop"
	doc := func(issuer string) string {
		return `{"issuer":"` + issuer + `","jwks_uri":"` + server.URL + `/certs","introspection_endpoint":"https://elsewhere.example.com/"}`
	}
	for name, x := range map[string]struct {
		issuer, metadata string
		paths            map[string]string
		client           *http.Client
		fails            string
	}{
		"OpenID Connect": {issuer: realm, client: server.Client(), paths: map[string]string{"/realms/shop/.well-known/openid-configuration": doc(realm)}},
		"with a slash at the end": {issuer: realm + "/", client: server.Client(),
			paths: map[string]string{"/realms/shop/.well-known/openid-configuration": doc(realm + "/")}},
		"RFC 8414":             {issuer: realm, client: server.Client(), paths: map[string]string{"/.well-known/oauth-authorization-server/realms/shop": doc(realm)}},
		"an address elsewhere": {issuer: "https://sts.example.com/t1/", metadata: server.URL + "/meta", client: server.Client(), paths: map[string]string{"/meta": doc("https://sts.example.com/t1/")}},
		"another issuer's": {issuer: realm, client: server.Client(), fails: "another issuer's",
			paths: map[string]string{"/realms/shop/.well-known/openid-configuration": doc(server.URL)}},
		"none":                {issuer: realm, client: server.Client(), fails: "404"},
		"a redirect":          {issuer: realm, client: server.Client(), fails: "302", paths: map[string]string{"/realms/shop/.well-known/openid-configuration": "to /meta", "/meta": doc(realm)}},
		"a name twice":        {issuer: realm, client: server.Client(), fails: "not JSON", paths: map[string]string{"/realms/shop/.well-known/openid-configuration": `{"issuer":"x",` + doc(realm)[1:]}},
		"keys by plain http":  {issuer: realm, client: server.Client(), fails: "https", paths: map[string]string{"/realms/shop/.well-known/openid-configuration": strings.Replace(doc(realm), server.URL+"/certs", "http://10.0.0.1/certs", 1)}},
		"the default client":  {issuer: realm, fails: "not on the public Internet", paths: map[string]string{"/realms/shop/.well-known/openid-configuration": doc(realm)}},
		"plain http":          {issuer: "http://auth.example.com", client: server.Client(), fails: "https"},
		"metadata over http":  {issuer: realm, metadata: "http://auth.example.com/meta", client: server.Client(), fails: "https"},
		"an issuer with user": {issuer: "https://a@auth.example.com", client: server.Client(), fails: "URL"},
	} {
		mu.Lock()
		clear(paths)
		for k, v := range x.paths {
			paths[k] = v
		}
		paths["/certs"] = `{"keys":[]}`
		mu.Unlock()
		tctx, cancel := context.WithTimeout(ctx, time.Minute)
		set, err := remote.Discover(x.issuer, x.metadata, x.client).JWKS(tctx, "")
		cancel()
		if x.fails == "" {
			require.NoError(t, err, name)
			require.Equal(t, `{"keys":[]}`, string(set), name)
			continue
		}
		require.Error(t, err, name)
		require.Contains(t, err.Error()+causes(err), x.fails, name)
	}
}

// causes are the texts of all errors behind err.
func causes(err error) (text string) {
	for ; err != nil; err = errors.Unwrap(err) {
		if many, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range many.Unwrap() {
				text += "; " + e.Error() + causes(e)
			}
			return text
		}
		text += "; " + err.Error()
	}
	return text
}

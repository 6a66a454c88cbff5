package oauthhttp_test

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
)

// spec is the served description. Every answer that a test gets is held against it.
type spec struct{ doc map[string]any }

func readSpec(t testing.TB, h *oauthhttp.Handler) *spec {
	t.Helper()
	w := httptest.NewRecorder()
	h.OpenAPI().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	require.Equal(t, http.StatusOK, w.Code)
	require.Equal(t, "application/openapi+json", w.Header().Get("Content-Type"))
	s := &spec{}
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &s.doc))
	return s
}

func (s *spec) at(path ...string) map[string]any {
	m := s.doc
	for _, p := range path {
		m, _ = m[p].(map[string]any)
	}
	return m
}

func (s *spec) check(t testing.TB, r *http.Request, a *answer) {
	t.Helper()
	base, err := url.Parse(s.doc["servers"].([]any)[0].(map[string]any)["url"].(string))
	require.NoError(t, err)
	path, ok := strings.CutPrefix(r.URL.Path, base.Path)
	if !ok {
		return
	}
	if strings.HasPrefix(path, "/register/") {
		path = "/register/{client}"
	}
	method := strings.ToLower(r.Method)
	if s.at("paths", path) == nil || method == "options" || method == "head" || a.StatusCode == http.StatusMethodNotAllowed && s.at("paths", path, method) == nil {
		return
	}
	where := fmt.Sprintf("%s %s → %d", r.Method, path, a.StatusCode)
	described := s.at("paths", path, method, "responses", strconv.Itoa(a.StatusCode))
	require.NotNil(t, described, "%s is not described: %s", where, a.raw)
	heads, _ := described["headers"].(map[string]any)
	for name := range heads {
		require.NotEmpty(t, a.Header.Get(name), "%s lacks %s", where, name)
	}
	media, _, _ := strings.Cut(a.Header.Get("Content-Type"), ";")
	contents, _ := described["content"].(map[string]any)
	if contents == nil {
		if path != "/authorize" {
			require.Empty(t, a.raw, "%s has a body that is not described", where)
		}
		return
	}
	typed, _ := contents[media].(map[string]any)
	require.NotNil(t, typed, "%s has content of type %q, which is not described", where, media)
	if strings.HasSuffix(media, "json") {
		var v any
		require.NoError(t, json.Unmarshal(a.raw, &v))
		require.NoError(t, s.valid(typed["schema"].(map[string]any), v, "body"), where)
	}
}

// valid is as much of JSON Schema as the description uses.
func (s *spec) valid(schema map[string]any, v any, at string) error {
	if to, ok := schema["$ref"].(string); ok {
		target := s.at(strings.Split(strings.TrimPrefix(to, "#/"), "/")...)
		if target == nil {
			return fmt.Errorf("%s: %s is not there", at, to)
		}
		return s.valid(target, v, at)
	}
	for word := range schema {
		if !slices.Contains([]string{"type", "properties", "required", "additionalProperties", "items", "enum", "pattern", "description"}, word) {
			return fmt.Errorf("%s: the test does not know the keyword %q", at, word)
		}
	}
	if enum, ok := schema["enum"].([]any); ok && !slices.Contains(enum, v) {
		return fmt.Errorf("%s: %v is none of %v", at, v, enum)
	}
	switch schema["type"] {
	case "string":
		text, ok := v.(string)
		if pattern, has := schema["pattern"].(string); ok && has && !regexp.MustCompile(pattern).MatchString(text) {
			return fmt.Errorf("%s: %q does not match %s", at, text, pattern)
		}
		if !ok {
			return fmt.Errorf("%s: %v is no string", at, v)
		}
	case "integer":
		if n, ok := v.(float64); !ok || n != math.Trunc(n) {
			return fmt.Errorf("%s: %v is no integer", at, v)
		}
	case "boolean":
		if _, ok := v.(bool); !ok {
			return fmt.Errorf("%s: %v is no boolean", at, v)
		}
	case "array":
		list, ok := v.([]any)
		if !ok {
			return fmt.Errorf("%s: %v is no array", at, v)
		}
		for i, x := range list {
			if err := s.valid(schema["items"].(map[string]any), x, fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
	case "object":
		m, ok := v.(map[string]any)
		if !ok {
			return fmt.Errorf("%s: %v is no object", at, v)
		}
		required, _ := schema["required"].([]any)
		for _, name := range required {
			if _, ok := m[name.(string)]; !ok {
				return fmt.Errorf("%s: lacks %s", at, name)
			}
		}
		members, _ := schema["properties"].(map[string]any)
		for name, x := range m {
			member, ok := members[name].(map[string]any)
			if !ok {
				if schema["additionalProperties"] == false {
					return fmt.Errorf("%s: %s is not described", at, name)
				}
				continue
			}
			if err := s.valid(member, x, at+"."+name); err != nil {
				return err
			}
		}
	default:
		return fmt.Errorf("%s: type %v", at, schema["type"])
	}
	return nil
}

func TestTheDescriptionIsWellFormed(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) {
		o.Registration = &oauthhttp.Registration{}
	})
	doc := s.spec.doc
	require.Equal(t, "3.1.0", doc["openapi"])
	require.Equal(t, testIssuer, doc["servers"].([]any)[0].(map[string]any)["url"])
	var refs []string
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if to, ok := v["$ref"].(string); ok {
				refs = append(refs, to)
			}
			for _, x := range v {
				walk(x)
			}
		case []any:
			for _, x := range v {
				walk(x)
			}
		}
	}
	walk(doc)
	require.NotEmpty(t, refs)
	for _, to := range refs {
		require.NotNil(t, s.spec.at(strings.Split(strings.TrimPrefix(to, "#/"), "/")...), to)
	}
	for path, item := range s.spec.at("paths") {
		for method, op := range item.(map[string]any) {
			if method == "parameters" {
				continue
			}
			require.NotEmpty(t, op.(map[string]any)["summary"], "%s %s", method, path)
			require.NotEmpty(t, op.(map[string]any)["responses"], "%s %s", method, path)
		}
	}
	require.Len(t, s.spec.at("paths"), 10)
	bare, err := oauthhttp.New(s.svc, nil)
	require.NoError(t, err)
	require.Len(t, readSpec(t, bare).at("paths"), 5, "what is off is not described")
}

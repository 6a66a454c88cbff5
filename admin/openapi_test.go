package admin

import (
	"encoding/json"
	"flag"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
)

var update = flag.Bool("update", false, "write openapi.json anew")

// TestDescription: openapi.json says exactly what is served. It is made from the table of operations and the types of their inputs
// and answers; after a change run go test ./admin -run TestDescription -update.
func TestDescription(t *testing.T) {
	t.Parallel()
	want, err := json.MarshalIndent(describe(), "", "  ")
	require.NoError(t, err)
	want = append(want, '\n')
	if *update {
		require.NoError(t, os.WriteFile("openapi.json", want, 0o644))
		return
	}
	require.Equal(t, string(want), string(Description), "openapi.json is not what is served: run the test with -update")
}

type object = map[string]any

func describe() object {
	s := schemas{object{}}
	paths := object{}
	for _, x := range operations {
		op := object{"summary": x.about, "operationId": operationID(x), "responses": object{
			"200":     object{"description": "done", "content": content(&s, x)},
			"default": object{"description": "it failed", "content": object{"application/json": object{"schema": s.of(reflect.TypeOf(Problem{}))}}},
		}}
		if x.change {
			op["description"] = "Needs the scope for changes."
		}
		in := reflect.TypeOf(x.in)
		var parameters []any
		for i := range in.NumField() {
			f := in.Field(i)
			for _, place := range []string{"path", "query"} {
				if name := f.Tag.Get(place); name != "" {
					parameters = append(parameters, object{"name": name, "in": place, "required": place == "path", "schema": s.of(f.Type)})
				}
			}
		}
		if parameters != nil {
			op["parameters"] = parameters
		}
		if hasBody(in) {
			op["requestBody"] = object{"required": true, "content": object{"application/json": object{"schema": s.of(in)}}}
		}
		if paths[x.path] == nil {
			paths[x.path] = object{}
		}
		paths[x.path].(object)[strings.ToLower(x.method)] = op
	}
	return object{
		"openapi": "3.1.0",
		"info": object{"title": "apitoken admin", "version": "1", "description": "What operators see of a token service and change in it. On the Unix socket no credential is needed, and the header " +
			actorHdr + " names who acts; over TLS a bearer token that holds the admin scope is."},
		"security":   []any{object{"bearer": []any{}}, object{}},
		"paths":      paths,
		"components": object{"schemas": s.all, "securitySchemes": object{"bearer": object{"type": "http", "scheme": "bearer"}}},
	}
}

func operationID(x operation) string {
	return strings.ToLower(x.method) + regexp.MustCompile(`[^a-z]+`).ReplaceAllString(strings.TrimPrefix(x.path, "/v1"), "_")
}

func content(s *schemas, x operation) object {
	switch {
	case x.out != nil:
		return object{"application/json": object{"schema": s.of(reflect.TypeOf(x.out))}}
	case strings.HasSuffix(x.path, ".json"):
		return object{"application/json": object{}}
	}
	return object{"application/octet-stream": object{}}
}

type schemas struct{ all object }

func (s *schemas) of(t reflect.Type) object {
	switch t {
	case reflect.TypeOf(time.Time{}):
		return object{"type": "string", "format": "date-time"}
	case reflect.TypeOf(json.RawMessage{}):
		return object{"type": "object"}
	case reflect.TypeOf(apitoken.Target{}):
		return object{"type": "string", "description": "such as subject:alice"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return s.of(t.Elem())
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int, reflect.Int64, reflect.Uint64:
		return object{"type": "integer"}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.Slice:
		return object{"type": "array", "items": s.of(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": s.of(t.Elem())}
	case reflect.Struct:
		if t.PkgPath() == "net/netip" {
			return object{"type": "string"}
		}
	default:
		panic("no schema for " + t.String())
	}
	name := regexp.MustCompile(`\[.*[./](\w+)\]`).ReplaceAllString(t.Name(), "Of$1")
	if s.all[name] == nil {
		s.all[name] = object{} // before its fields, which may name it
		properties := object{}
		var required []string
		for _, f := range reflect.VisibleFields(t) {
			tag, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
			if tag == "-" || !f.IsExported() || f.Anonymous || f.Tag.Get("path") != "" {
				continue
			}
			properties[tag] = s.of(f.Type)
			if !strings.Contains(opts, "omit") {
				required = append(required, tag)
			}
		}
		x := object{"type": "object", "properties": properties}
		if slices.Sort(required); required != nil {
			x["required"] = required
		}
		s.all[name] = x
	}
	return object{"$ref": "#/components/schemas/" + name}
}

// TestEveryOperationHasANameOfItsOwn: generated clients go by operationId.
func TestEveryOperationHasANameOfItsOwn(t *testing.T) {
	t.Parallel()
	ids := map[string]bool{}
	for _, x := range operations {
		ids[operationID(x)] = true
	}
	require.Len(t, ids, len(operations), slices.Sorted(maps.Keys(ids)))
}

module github.com/apitoken-go/apitoken/wycheproof

go 1.25.0

replace github.com/apitoken-go/apitoken => ..

require (
	github.com/apitoken-go/apitoken v0.0.0-00010101000000-000000000000
	github.com/c2sp/wycheproof v0.0.0-20260105152342-fca0d3ba9f12
	github.com/stretchr/testify v1.12.1
)

require (
	github.com/go-jose/go-jose/v4 v4.1.9 // indirect
	github.com/golang-jwt/jwt/v5 v5.3.1 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
)

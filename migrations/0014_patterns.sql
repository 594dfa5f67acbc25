-- Which definitions are patterns: asked whenever the definitions were changed, and few of very many may be.
CREATE INDEX limit_definition_patterns ON limit_definition (limit_id) WHERE is_pattern;

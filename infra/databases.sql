-- Run once, when PostgreSQL's volume is empty: one database per server.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
